"""What executes notebooks: the command line, runner, sweep, kernels, verify, report, doctor, plot."""
