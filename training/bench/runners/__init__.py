"""Who plays the arms: the real engine, the simulator, and emulated devices."""
