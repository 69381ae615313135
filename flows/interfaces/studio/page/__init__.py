"""Files of the studio's page."""
