"""What all pages are made of: one document, one style, and the parts of their scripts."""
