"""Shows people lines, bars and sizes."""
