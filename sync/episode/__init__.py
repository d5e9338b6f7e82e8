"""The episode on disk: format, writer, reader, recovery and manifest."""
