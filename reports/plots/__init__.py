"""How plots look; what is drawn is said by the topics."""
