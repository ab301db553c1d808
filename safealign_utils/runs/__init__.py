"""What executes notebooks: commands, runner, sweep, kernels, verify, report, doctor, plot."""
