"""This room sets the looks of plots; the topics say what is drawn."""
