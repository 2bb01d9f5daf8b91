"""tools/test_summary.py must count cases, and turn a crash that left no failed case into a failure."""

import pathlib
import subprocess
import sys

TOOL = pathlib.Path(__file__).resolve().parents[2] / "tools" / "test_summary.py"
PASSING = '<testsuites><testsuite><testcase name="a" status="run"/><testcase name="b" status="run"/></testsuite></testsuites>'
MIXED = ('<testsuites><testsuite><testcase name="a"/><testcase name="b"><failure/></testcase>'
         '<testcase name="c"><skipped/></testcase></testsuite></testsuites>')


def ctest(**entries):
    return "<testsuite>" + "".join(f'<testcase name="{n}" status="{s}"/>' for n, s in entries.items()) + "</testsuite>"


def summarize(root, **reports):
    for name, text in reports.items():
        (root / f"{name}.xml").write_text(text)
    done = subprocess.run([sys.executable, TOOL, root], capture_output=True, text=True, check=False)
    return done.returncode, done.stdout.splitlines()


def test_all_passed(tmp_path):
    assert summarize(tmp_path, test_text=PASSING, ctest=ctest(text="run")) == (0, ["2 passed, 0 failed"])


def test_failed_case_is_counted_once(tmp_path):
    code, lines = summarize(tmp_path, test_text=PASSING, test_ops=MIXED, ctest=ctest(text="run", ops="fail"))
    assert (code, lines[-1]) == (1, "3 passed, 1 failed, 1 skipped")


def test_crash_without_a_report_fails(tmp_path):
    code, lines = summarize(tmp_path, test_text=PASSING, ctest=ctest(text="run", ops="fail"))
    assert (code, lines[-1]) == (1, "2 passed, 1 failed")
    assert "ops: failed outside its test cases" in lines[0]


def test_leak_after_passing_cases_fails(tmp_path):
    code, lines = summarize(tmp_path, test_text=PASSING, ctest=ctest(text="fail"))
    assert (code, lines[-1]) == (1, "2 passed, 1 failed")


def test_torn_report_fails(tmp_path):
    code, lines = summarize(tmp_path, test_text=PASSING[:40])
    assert (code, lines[-1]) == (1, "0 passed, 1 failed")


def test_nothing_run_is_no_success(tmp_path):
    assert summarize(tmp_path) == (1, ["0 passed, 0 failed"])
