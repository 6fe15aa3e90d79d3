"""The commands of `python -m hybridops`, a module each: its docstring is the help, and it has

add_arguments(parser) and run(args), which gives the exit status.
"""
