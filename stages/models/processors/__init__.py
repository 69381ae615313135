"""How a checkpoint's processor is called and what it keeps of pictures; knows no weights."""
