"""Reads and writes everything that Penstock stores on disk. Imports nothing from `stages` or
`flows`.
"""
