/**
 * Runs the compiled tests with Node's test runner: `node scripts/test.js [text...]`. With texts, only the files whose
 * path contains one of them. After each run it says what was skipped, and why.
 *
 * There are two runs: files that change the machine (its hugepages, which every other file with memory would take or count)
 * come alone, one after the other. All others come first, as many at a time as there are processors.
 *
 * The list is made of the sources, because dist/ may still have tests whose source is gone, and because Node 20 knows no
 * patterns in `--test` and later versions read a folder there differently.
 */
import { spawnSync } from 'node:child_process';
import { mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { availableParallelism, tmpdir } from 'node:os';
import { join } from 'node:path';

/** What a file imports that changes the machine. */
const CHANGES = '/real-hugepages.js';

const wanted = process.argv.slice(2);
const files = ['src', 'test']
  .flatMap((folder) => readdirSync(folder, { recursive: true, encoding: 'utf8' }).map((file) => join(folder, file)))
  .filter((file) => file.endsWith('.test.ts'))
  .filter((file) => wanted.length === 0 || wanted.some((text) => file.includes(text)))
  .sort();

if (files.length === 0) {
  console.error(`no test file in src/ or test/ matches: ${wanted.join(' ')}`);
  process.exit(1);
}

/** @type {(file: string) => boolean} */
const isAlone = (file) => readFileSync(file, 'utf8').includes(CHANGES);
const folder = mkdtempSync(join(tmpdir(), 'anydma-tests-'));
try {
  run(
    files.filter((file) => !isAlone(file)),
    availableParallelism(),
  );
  run(files.filter(isAlone), 1);
} finally {
  rmSync(folder, { recursive: true, force: true });
}

/**
 * @param {string[]} some sources
 * @param {number} atOnce how many files run at the same time
 */
function run(some, atOnce) {
  if (some.length === 0) return;
  const skipped = join(folder, 'skipped');
  // No test takes minutes: a test that hangs ends as a failure.
  const { status } = spawnSync(
    process.execPath,
    [
      ...['--test', '--test-timeout=300000', `--test-concurrency=${atOnce}`],
      ...['--test-reporter=spec', '--test-reporter-destination=stdout'],
      ...['--test-reporter=./scripts/report-skipped.js', `--test-reporter-destination=${skipped}`],
      ...some.map((file) => join('dist', file.replace(/\.ts$/, '.js'))),
    ],
    { stdio: 'inherit' },
  );
  process.stdout.write(readFileSync(skipped, 'utf8'));
  if (status !== 0) process.exitCode = status ?? 1;
}
