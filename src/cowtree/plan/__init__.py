"""Planning: values in, plans out. Nothing here opens a file, looks at a clock or decides twice."""
