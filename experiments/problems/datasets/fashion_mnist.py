"""Fashion-MNIST: articles of clothing in MNIST's format and under the names of its files.

It is published with MD5 checksums of the gzipped files, in the same order as below:
8d4fb7e6c68d591d4c3dfef9ec88bf0d, 25c81989df183df01b3e8a0aad5dffbe,
bef4ecab320f06d8554ea6380940ec79 and bb300cfdad3c16e7a12a480ee83cd310. Gzipped anew, as by
Linux distributions, the files have others; so what is compared, as for MNIST, is the SHA-256
of what those files unpack to.

Pixels are standardised with the usual mean and standard deviation of the training images.

Source: Xiao, Rasul & Vollgraf, 2017, https://github.com/zalandoresearch/fashion-mnist.
"""

from experiments.problems.datasets.idx import Published

FASHION_MNIST = Published(
    name="Fashion-MNIST",
    flag="fashion_mnist",
    url="http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
    mean=0.2860,
    std=0.3530,
    digits=False,
    digests={
        "train-images-idx3-ubyte": (
            "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888"
        ),
        "train-labels-idx1-ubyte": (
            "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9"
        ),
        "t10k-images-idx3-ubyte": (
            "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b"
        ),
        "t10k-labels-idx1-ubyte": (
            "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34"
        ),
    },
)
KIND = FASHION_MNIST.kind("28x28 images of clothing; a mistake if they cannot be had")
