#!/usr/bin/env bash
# Runs the built tests of a build folder and leaves JUnit reports in BUILD/reports for tools/test_summary.py.
# Usage: tools/run_tests.sh cpp BUILD [ctest flags]   |   tools/run_tests.sh python BUILD
# The exit code says only whether the tests could be run; the reports say which failed.
set -euo pipefail
cd "$(dirname "$0")/.."
kind=$1 build=$2
shift 2
reports=$PWD/$build/reports

case $kind in
  cpp)
    rm -rf "$reports/cpp" && mkdir -p "$reports/cpp"
    # A stale ctest.xml would count an old failure, a missing one would hide a crash: it is checked below.
    GTEST_OUTPUT="xml:$reports/cpp/" GTEST_BRIEF=1 ctest --test-dir "$build" --output-on-failure --no-tests=error \
      --timeout 900 --output-junit "$reports/cpp/ctest.xml" "$@" || true
    [[ -s $reports/cpp/ctest.xml ]] || { echo "run_tests: ctest left no report in $reports/cpp" >&2; exit 1; }
    ;;
  python)
    mkdir -p "$reports"
    rm -f "$reports/pytest.xml"
    PYTHONPATH=$PWD/python:$PWD .venv/bin/python -m pytest -q -p no:cacheprovider tests --junitxml="$reports/pytest.xml" "$@" || true
    [[ -s $reports/pytest.xml ]] || { echo "run_tests: pytest left no report in $reports" >&2; exit 1; }
    ;;
  *) echo "usage: tools/run_tests.sh cpp|python BUILD" >&2; exit 2 ;;
esac
