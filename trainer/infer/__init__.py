"""From a trained network and a slide to a map of class probabilities, and from the map to files."""
