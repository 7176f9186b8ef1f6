"""What is compared: the arms, the settings, the requests, and the loop over them."""
