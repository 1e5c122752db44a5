"""What visitors may ask of a server, unless its command line says otherwise."""

MAX_IMAGE_PIXELS = 64_000_000  # 256 MB once decoded: Pillow keeps 4 bytes of each
MAX_LARGEST_IMAGES = 4  # the pictures of a conversation may together have the pixels of so many of the largest
MAX_SESSIONS = 8
MAX_UPLOAD_MB = 100
