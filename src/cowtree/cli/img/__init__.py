"""`cowtree img`: the words, the output and the exit status of qemu-img. One module per subcommand, named after it."""
