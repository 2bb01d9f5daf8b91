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
  python)  # the server's tests beside all others: each half waits for one thread of an engine most of the time
    mkdir -p "$reports"
    rm -f "$reports"/pytest*.xml
    pytest() {
      PYTHONPATH=$PWD/python:$PWD .venv/bin/python -m pytest -q -p no:cacheprovider --junitxml="$reports/pytest-$1.xml" "${@:2}"
    }
    log=$reports/pytest-server.log
    pytest server tests/server "$@" >"$log" 2>&1 &
    pytest rest tests --ignore=tests/server "$@" || true
    wait $! || true
    cat "$log"
    for half in rest server; do
      [[ -s $reports/pytest-$half.xml ]] || { echo "run_tests: pytest left no report of $half in $reports" >&2; exit 1; }
    done
    ;;
  *) echo "usage: tools/run_tests.sh cpp|python BUILD" >&2; exit 2 ;;
esac
