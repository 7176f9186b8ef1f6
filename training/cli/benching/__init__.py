"""Commands that compare policies, on the real engine and the modelled one."""
