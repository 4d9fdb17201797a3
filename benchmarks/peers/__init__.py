"""jaxcnn beside other libraries (`make peers`), and beside what papers claim (`make literature`)."""
