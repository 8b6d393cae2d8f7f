"""Where data sets come from: files as their authors published them, with their SHA-256."""

from typing import Literal, NamedTuple


class Original(NamedTuple):
    """One file as its authors published it."""

    file: str
    sha256: str
    bytes: int


class Source(NamedTuple):
    """Where a data set comes from."""

    licence: str
    url: str  # the folder of the files; empty if they have no public address
    files: tuple[Original, ...]  # idx: train images, labels; test images, labels. Otherwise training, held out
    held_back: int  # training examples kept for validation
    folder: str = ""  # in the folder of originals; the data set's name by default
    format: Literal["idx", "binary", "differences", "text", "rows"] = "idx"
    classes: int = 10


_CIFAR = "none stated (A. Krizhevsky 2009; for research)"
_KRIZ = "https://www.cs.toronto.edu/~kriz/"
_SUPERGLUE = "SuperGLUE (Wang et al. 2019; for research)"


def _rows(licence: str, *files: tuple[str, str, int]) -> Source:
    """Rows of a SuperGLUE task: training and validation."""
    originals = tuple(Original(f"{name}.jsonl.gz", sha256, size) for name, sha256, size in files)
    return Source(licence, "", originals, held_back=0, folder="superglue", format="rows")


SOURCES = {
    "mnist": Source(
        "CC BY-SA 3.0 (Y. LeCun, C. Cortes)",
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
        (
            Original(
                "train-images-idx3-ubyte.gz",
                "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
                9_912_422,
            ),
            Original(
                "train-labels-idx1-ubyte.gz",
                "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
                28_881,
            ),
            Original(
                "t10k-images-idx3-ubyte.gz",
                "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
                1_648_877,
            ),
            Original(
                "t10k-labels-idx1-ubyte.gz",
                "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
                4_542,
            ),
        ),
        held_back=5_000,
    ),
    "fashion_mnist": Source(
        "MIT (Zalando SE)",
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        (
            Original(
                "train-images-idx3-ubyte.gz",
                "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
                26_421_880,
            ),
            Original(
                "train-labels-idx1-ubyte.gz",
                "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
                29_515,
            ),
            Original(
                "t10k-images-idx3-ubyte.gz",
                "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
                4_422_102,
            ),
            Original(
                "t10k-labels-idx1-ubyte.gz",
                "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
                5_148,
            ),
        ),
        held_back=5_000,
    ),
    "cifar10": Source(
        _CIFAR,
        _KRIZ,
        (
            Original(
                "cifar-10-binary.tar.gz",
                "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
                170_052_171,
            ),
        ),
        held_back=5_000,
        format="binary",
    ),
    "cifar100": Source(
        _CIFAR,
        _KRIZ,
        (
            Original(
                "cifar-100-binary.tar.gz",
                "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
                168_513_733,
            ),
        ),
        held_back=5_000,
        format="binary",
        classes=100,
    ),
    "cifar10_15k": Source(
        _CIFAR,
        "",
        (
            Original(
                "cifar10_train_15000.npz",
                "b0cb779f25ef3a01c011ebd66c800440147d3b07d5d9a087a8d45c0e81177740",
                27_579_506,
            ),
            Original(
                "cifar10_test_5000.npz",
                "53143672f0c5cd2650c8ee9cf08ca1c5f7471af217f62bdda75dc2e65ccd696c",
                9_175_572,
            ),
        ),
        held_back=1_500,
        folder="cifar",
        format="differences",
    ),
    "cifar100_10k": Source(
        _CIFAR,
        "",
        (
            Original(
                "cifar100_train_10000.npz",
                "b6f69cecbdae60ccdf2ca995c21ca744243b95076c00bd8c5ebb72aa9aafea25",
                18_627_111,
            ),
            Original(
                "cifar100_test_2000.npz",
                "d98e29c7866acfa4b1fa25b7e0b0e23e0eccd24d01d65d203c21f8dbd1717a1c",
                3_740_927,
            ),
        ),
        held_back=1_000,
        folder="cifar",
        format="differences",
        classes=100,
    ),
    "shakespeare": Source(
        "public domain (A. Karpathy's selection, MIT)",
        "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/",
        (Original("input.txt", "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed", 1_115_394),),
        held_back=111_540,
        folder="text/tinyshakespeare",
        format="text",
    ),
    "wikitext2": Source(
        "CC BY-SA 3.0 (Wikipedia)",
        "",
        (
            Original(
                "wikitext2_valid.txt.gz",
                "3cdd8cb5bb349a05840c7c3bef9578d90d64df77e27e0c25c033ba9342757ee3",
                373_475,
            ),
            Original(
                "wikitext2_test.txt.gz",
                "688887879b4b526692cb2e423a516dcc5f6584a01fd3f33a8e164fbed2de8090",
                410_944,
            ),
        ),
        held_back=0,
        folder="text",
        format="text",
    ),
    "gutenberg": Source(
        "public domain in the USA (Project Gutenberg, NLTK's selection)",
        "",
        (
            Original(
                "gutenberg17.txt.gz",
                "44fa7658a89f4d3485d8b1344ba0abf80f03a2300d027f3c23bda4aef9936b22",
                2_826_665,
            ),
        ),
        held_back=500_000,
        folder="text",
        format="text",
    ),
    "cb": _rows(
        _SUPERGLUE,
        ("CB.train", "c0ff590ec72c3c98ef99c4168bb7ebb5b264749d9fb9e4da2de770d435c9b18e", 31_614),
        ("CB.val", "fb5de50957cccf5c9fccda83f4af8d426eb40bfc2d87408356b574358a055ec5", 8_808),
    ),
    "copa": _rows(
        "BSD-2-Clause",
        ("COPA.train", "e03db914b114b4fd4364171018c0d7bf3baa81b5716cbb6eb0700a6dd38a8043", 17_283),
        ("COPA.val", "a42d68343a5af38058e0d8324b9adcb3afea724cf8c6978251e41f24fb90a1cf", 4_839),
    ),
    "rte": _rows(
        _SUPERGLUE,
        ("RTE.train", "1b3eefea25891b51b16fad3b12403361ec56da36797887a878b54dabd5782384", 347_092),
        ("RTE.val", "d8d76f047325c8120b4004e2da0c9b84ffb7e80c803dc69399b763870d40a26b", 38_569),
    ),
    "wic": _rows(
        "CC BY-NC 4.0",
        ("WiC.train", "5044f7d3f0270121b7f2e1a2443d174432c3ee6ade8f7761222aa6b9337d34d4", 272_618),
        ("WiC.val", "adcc1eef9fc83ffd36b88650b5fa6abc36b9ca92f446b573d053d38d991766de", 35_423),
    ),
}
"""By name. Text is loaded by `text.load_text`, rows by `superglue.load_rows`, images by `data.load`."""

INSTEAD = {"cifar10_15k": "cifar10", "cifar100_10k": "cifar100", "wikitext2": "shakespeare", "gutenberg": "shakespeare"}
"""For data sets whose files have no public address: the nearest one that can be downloaded, if there is any."""
