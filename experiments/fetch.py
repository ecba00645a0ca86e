"""Downloads files under their own names; a program of its own, since no call of it can be ended.

python -m experiments.fetch FOLDER URL [URL ...]

Exit status: 0 done; 1 not, and why is on standard output.
"""

import sys
from pathlib import Path


def main(folder: str, *urls: str) -> int:
    """Downloads into a folder and shows progress."""
    import tensorflow_datasets as tfds

    try:
        manager = tfds.download.DownloadManager(download_dir=Path(folder, "parts"))
        for url, path in manager.download({url: url for url in urls}).items():
            Path(path).replace(Path(folder, url.rpartition("/")[2]))
    except Exception as error:  # of the network, the server or the disk
        print(" ".join(str(error).split()))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
