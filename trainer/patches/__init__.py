"""Where patches lie, what they hold, and which side of the split they are on."""
