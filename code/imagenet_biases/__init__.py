"""Images -> stimuli -> networks -> responses -> scores: the stages that the benchmarks share, one file each."""
