"""What each kind of fine-tuning reads, learns and is measured by."""
