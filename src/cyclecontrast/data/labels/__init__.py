"""Which labeled images and videos there are: layouts of folders and lists."""
