/**
 * Runs the compiled tests with Node's test runner: `node scripts/test.js [--slow] [--again] [text...]`. With texts, only the
 * files whose path contains one of them. After each run it says what was skipped, and why.
 *
 * Files that start dozens of processes or run tens of thousands of rounds are called `*.slow.test.ts`. They run with `--slow`, alone,
 * and when a text names them.
 *
 * With `--again`, as in CI, files that failed run once more, alone. A file that passes then is named as unsteady and does not
 * fail the run: on a busy machine a test that waits for the system can be late. A file that fails twice fails the run.
 *
 * There are two runs: files that change the machine (its hugepages, which every other file with memory would take or count)
 * come alone, one after the other. All others come first, as many at a time as there are processors.
 *
 * To start a process and load the library in it takes longer than most files run. So files that ask neither the machine nor
 * their process for anything share one with others, one file after the other.
 *
 * The list is made of the sources, because dist/ may still have tests whose source is gone, and because Node 20 knows no
 * patterns in `--test` and later versions read a folder there differently.
 */
import { spawnSync } from 'node:child_process';
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { availableParallelism, tmpdir } from 'node:os';
import { join, relative, resolve } from 'node:path';

/** What a file imports that changes the machine. */
const CHANGES = '/real-hugepages.js';

/** What a file has whose tests look at the machine or the process they run in, or change it; or hooks for all tests there are. */
const OWN_PROCESS =
  /openPlatform|\bEal\b|testSources|\bprocess\.|\/proc\/|child_process|worker_threads|new Room|globalThis|mock|^(before|after)(Each)?\(/m;

/** How many files share a process. */
const TOGETHER = 11;

const again = process.argv.includes('--again');
const slow = process.argv.includes('--slow');
const wanted = process.argv.slice(2).filter((text) => !text.startsWith('--'));
const files = ['src', 'bench', 'test']
  .flatMap((folder) => readdirSync(folder, { recursive: true, encoding: 'utf8' }).map((file) => join(folder, file)))
  .filter((file) => file.endsWith('.test.ts'))
  .filter((file) => wanted.length > 0 || slow === file.endsWith('.slow.test.ts'))
  .filter((file) => wanted.length === 0 || wanted.some((text) => file.includes(text)))
  .sort();

if (files.length === 0) {
  console.error(`no test file in src/, bench/ or test/ matches: ${wanted.join(' ')}`);
  process.exit(1);
}

/** @type {(file: string) => string} */
const source = (file) => readFileSync(file, 'utf8');
/** @type {(file: string) => string} */
const compiled = (file) => resolve('dist', file.replace(/\.ts$/, '.js'));
const folder = mkdtempSync(join(tmpdir(), 'anydma-tests-'));
try {
  const alone = files.filter((file) => source(file).includes(CHANGES));
  const others = files.filter((file) => !alone.includes(file));
  const apart = others.filter((file) => OWN_PROCESS.test(source(file)));
  const sharing = others.filter((file) => !apart.includes(file));
  const failed = [
    ...run([...apart.map(compiled), ...together(sharing.map(compiled))], availableParallelism()),
    ...run(alone.map(compiled), 1),
  ];
  const twice = again ? failed.filter((file) => run([file], 1).length > 0) : failed;
  const unsteady = failed.filter((file) => !twice.includes(file));
  if (unsteady.length > 0)
    console.log(`\nunsteady: failed, and passed when run alone: ${unsteady.map(named).join(', ')}`);
  if (twice.length > 0) {
    console.log(`\nfailed: ${twice.map(named).join(', ')}`);
    process.exitCode = 1;
  }
} finally {
  rmSync(folder, { recursive: true, force: true });
}

/**
 * Programs that run some files each.
 *
 * @param {string[]} some compiled files
 */
function together(some) {
  const programs = [];
  for (let first = 0; first < some.length; first += TOGETHER) {
    const program = join(folder, `together-${programs.length + 1}.mjs`);
    const imports = some.slice(first, first + TOGETHER).map((file) => `await import(${JSON.stringify(file)});\n`);
    writeFileSync(program, imports.join(''));
    programs.push(program);
  }
  return programs;
}

/**
 * A compiled file, or a program of several, for people.
 *
 * @param {string} file
 */
function named(file) {
  if (!file.startsWith(folder)) return relative('dist', file);
  const files = readFileSync(file, 'utf8').matchAll(/"(.*)"/g);
  return [...files].map(([, one]) => relative('dist', one ?? '')).join(' + ');
}

/**
 * @param {string[]} some compiled files
 * @param {number} atOnce how many files run at the same time
 * @returns {string[]} which of them failed
 */
function run(some, atOnce) {
  if (some.length === 0) return [];
  const report = join(folder, 'report');
  // No test takes minutes: a test that hangs ends as a failure.
  const { status } = spawnSync(
    process.execPath,
    [
      ...['--test', '--test-timeout=300000', `--test-concurrency=${atOnce}`],
      ...['--test-reporter=spec', '--test-reporter-destination=stdout'],
      ...['--test-reporter=./scripts/report.js', `--test-reporter-destination=${report}`],
      ...some,
    ],
    { stdio: 'inherit' },
  );
  if (!existsSync(report)) return some; // the runner itself failed, and said why
  /** @type {import('./report.js').Report} */
  const { skipped, failed } = JSON.parse(readFileSync(report, 'utf8'));
  const count = skipped.reduce((sum, [, tests]) => sum + tests.length, 0);
  console.log(count === 0 ? '\nNo test was skipped.' : `\n${count} skipped:`);
  for (const [reason, tests] of skipped) console.log([`- ${reason}`, ...tests.map((test) => `    ${test}`)].join('\n'));
  if (status === 0) return [];
  const known = some.filter((file) => failed.some((name) => name === file || contents(file).includes(name)));
  return known.length > 0 ? known : some;
}

/**
 * The text of a program of several files; of others, none.
 *
 * @param {string} file
 */
function contents(file) {
  return file.startsWith(folder) ? readFileSync(file, 'utf8') : '';
}
