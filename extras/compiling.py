"""compiling.py: the same arithmetic in fewer passes over memory (torch.compile).

    python train_rm.py --model DIR --data pairs.jsonl --bf16 --compile

Run line by line, an RMSNorm is six small programs on a GPU. Each reads its input from memory and
writes its output there, and memory, not arithmetic, is what they wait for. torch.compile writes one
program for such a run of lines (Ansel et al. 2024, "PyTorch 2"). Matrix products and attention stay
the programs that they were.

    eager       x → x² → mean → + ε → rsqrt → · x → · weight          6 programs
    compiled    x → [ x², mean, + ε, rsqrt, · x, · weight ]           1 program

One layer is compiled at a time, not the model. All layers run the same code, so the first one is
compiled, and the others use its program: seconds instead of minutes. dynamic=True: the number of
rows and tokens is an argument of the program. Without it every new length would be compiled.

What it costs: the first two or three steps wait for the compiler, which has to be there: Triton for
a GPU, a C++ compiler for a CPU. Rewards differ from those without --compile by rounding.
tests/extras/test_compiling.py compares rewards and gradients, and counts the compiled programs.
"""
import torch

from data import DataError
from model import RewardModel


def compile_layers(model: RewardModel) -> None:
    """Let every layer run compiled from its next call on. The weights have to be in place.

    Raises: DataError where no compiler works.
    """
    check_compiler(model.score.weight.device)
    for layer in model.model.layers:
        layer.compile(dynamic=True)


def check_compiler(device: torch.device) -> None:
    """Compile the smallest program there is.  Raises: DataError where that fails."""
    # Without this the error would come in the first step, as a page of the compiler's own words.
    try:
        torch.compile(torch.sin)(torch.ones(2, device=device))
    except Exception as e:  # whatever is missing: there are many ways
        reason = str(e).strip().splitlines() or [type(e).__name__]
        raise DataError(f"--compile: no working compiler here ({reason[0]})") from None
