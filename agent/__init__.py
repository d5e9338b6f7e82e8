"""The program: rig configuration, supervisor, checker, report and command line."""
