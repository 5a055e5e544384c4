"""Where consumer groups stand in their inputs, and setting them further by hand."""
