"""Scaling studies: what was measured of each point, what it says about efficiency, and the report of a study."""
