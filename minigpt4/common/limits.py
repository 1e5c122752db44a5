"""What visitors may ask of a server, unless its command line says otherwise, and what is read of files at all."""

MAX_IMAGE_PIXELS = 64_000_000  # 256 MB once decoded: Pillow keeps 4 bytes of each
MAX_LARGEST_IMAGES = 4  # the pictures of a conversation may together have the pixels of so many of the largest
MAX_SIDE = 65_535  # pixels, as in a JPEG: one of 1 x 64,000,000 takes 3 GB to resize
MAX_SCANS = 50  # of a JPEG; encoders write about 10, and each goes over all pixels
MAX_DECODE_SECONDS = 20.0  # for all pictures of a stranger's question, in a process that ends then
MAX_TURNS = 500  # of a conversation
MAX_TEXT = 500_000  # characters of its questions and answers together
MAX_SESSIONS = 8
MAX_UPLOAD_MB = 100
