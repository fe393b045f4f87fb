"""The table of faults in docs/reliability.md, made of the tests that bear a fault's number.

python tests/helpers/fault_table.py      writes it
"""

import re
from collections import defaultdict

from project import ROOT

PAGE = ROOT / "docs" / "reliability.md"
BEGIN, END = "<!-- faults: begin -->", "<!-- faults: end -->"
_TEST = re.compile(r"^def test_fault_((?:\d\d_)+)(\w+)\(", re.MULTILINE)

CASES = {
    "Input": {
        1: "Bytes that are no image",
        2: "A JPEG or PNG cut short",
        3: "A decompression bomb",
        4: "A format that is not accepted",
        5: "CMYK, 16 bits, palettes, alpha, rotated, one pixel, very long and thin",
        6: "Thousands of malformed files",
        7: "A body over the limit, or one that lies about its length",
        8: "A wrong shape, type, name or batch",
        9: "k below 1 or over the limit, k over the gallery's size",
    },
    "Gallery": {
        10: "A cut, empty or foreign gallery file",
        11: "One bit flipped",
        12: "Sizes in a header that overflow or disagree",
        13: "A gallery of another width or model",
        14: "A file that is replaced while it is mapped",
        15: "A new version under load",
        16: "A broken new version",
        17: "Two writers at once",
        18: "A full disk, or a writer killed at any moment",
        19: "One id twice",
    },
    "Process": {
        20: "The process of a model is killed",
        21: "The server or its launcher is killed",
        22: "Small shared memory, a taken port, no Triton, numpy 2 beside it",
        23: "A request that nobody waits for any more",
        24: "A full queue",
        25: "An end under load",
    },
    "Artefacts": {
        26: "A plan of another GPU or TensorRT",
        27: "Weights outside an ONNX file, code in a checkpoint",
        28: "A checkpoint whose tensors do not fit",
    },
    "Found by attacking": {
        29: "Small files that are slow to decode",
        30: "Small files that need much memory",
        31: "A JPEG cut short and ended",
        32: "NaN or infinite logits",
        33: "A filter of a million ids",
        34: "A pointer that arrives before its file, any exception while following",
        35: "A damaged pointer or version at the start",
        36: "The process of a model hangs",
        37: "No rows, or bytes that lie, beside a good request",
        38: "A cut file in the cache of compiled code",
        39: "A kill or a power loss while a checkpoint or an export is replaced",
        40: "A power loss while a gallery is written",
        41: "The id of a removed code",
        42: "The control key in the process list",
        43: "Code in the current folder or in a plan",
        44: "Shared memory that is too small or open to others",
        45: "A model that is not the one of its manifest",
        46: "SIGHUP, draining, logs",
        47: "Failing system calls, a clock that jumps back",
        48: "New versions, killed processes and bad requests at once, for long",
    },
}


def faults_tested(folder):
    """Return {number: [(what the test's name says, file)]}, in the order of the files."""
    found = defaultdict(list)
    for file in sorted(folder.rglob("test_*.py")):
        for numbers, said in _TEST.findall(file.read_text()):
            for number in numbers.split("_")[:-1]:
                found[int(number)].append((said.replace("_", " "), file.relative_to(folder.parent).as_posix()))
    return dict(found)


def table(tests):
    """Return the table in Markdown."""
    lines = []
    for title, cases in CASES.items():
        lines += ["", f"### {title}", "", "| | case | what the tests show | in |", "|---|---|---|---|"]
        for number, case in cases.items():
            own = tests.get(number, [])
            files = " ".join(f"`{file}`" for file in dict.fromkeys(file for _, file in own))
            lines.append(f"| {number} | {case} | {'<br>'.join(said for said, _ in own)} | {files} |")
    return "\n".join([*lines[1:], ""])


def main():
    before, _, rest = PAGE.read_text().partition(BEGIN)
    after = rest.partition(END)[2]
    PAGE.write_text(f"{before}{BEGIN}\n\n{table(faults_tested(ROOT / 'tests'))}\n{END}{after}")


if __name__ == "__main__":
    main()
