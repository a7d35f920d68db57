"""The pages of the documentation, and the program that writes the generated one.

make docs                        builds the site in build/site
python -m docs.configuration     writes docs/configuration.md from the settings classes
"""
