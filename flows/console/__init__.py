"""Shows people lines, bars and sizes; knows no run."""
