"""The rig file and the processes of a recording session."""
