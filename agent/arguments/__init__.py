"""What the command line accepts, a module for each group; what it does is loaded when it is called."""
