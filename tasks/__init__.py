"""This room holds the tasks: GLUE and other data sets of the hub, a user's own files, and the embedded study."""
