"""Running a bundle: numpy, Pillow and one runtime. No torch but for torch programs.

May import: errors, common, signals.
"""
