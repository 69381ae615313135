"""Files and folders: names, locks, atomic writes, and signatures."""
