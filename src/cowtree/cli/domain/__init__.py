"""The verbs for guests and their snapshots: the words and the output of virsh. One module per group of verbs."""
