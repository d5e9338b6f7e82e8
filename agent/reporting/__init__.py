"""The parts of the HTML report: one pass over the episode, drawings, pictures, sections."""
