"""Running servers as a bench sees them: started, loaded by a client, calibrated."""
