"""Real training runs through the very commands that users have: what was reached, and the curves on the way there."""
