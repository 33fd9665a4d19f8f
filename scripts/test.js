/**
 * Runs the compiled tests with Node's test runner: `node scripts/test.js [text...]`. With texts, only the files whose
 * path contains one of them. At the end it says what was skipped, and why.
 *
 * The list is made of the sources, because dist/ may still have tests whose source is gone, and because Node 20 knows no
 * patterns in `--test` and later versions read a folder there differently.
 */
import { spawnSync } from 'node:child_process';
import { mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

const wanted = process.argv.slice(2);
const files = readdirSync('src', { recursive: true, encoding: 'utf8' })
  .filter((file) => file.endsWith('.test.ts'))
  .filter((file) => wanted.length === 0 || wanted.some((text) => file.includes(text)))
  .map((file) => join('dist', 'src', file.replace(/\.ts$/, '.js')))
  .sort();

if (files.length === 0) {
  console.error(`no test file in src/ matches: ${wanted.join(' ')}`);
  process.exit(1);
}

const folder = mkdtempSync(join(tmpdir(), 'anydma-tests-'));
try {
  const skipped = join(folder, 'skipped');
  // No test takes minutes: a test that hangs ends as a failure.
  const { status } = spawnSync(
    process.execPath,
    [
      '--test',
      '--test-timeout=300000',
      ...['--test-reporter=spec', '--test-reporter-destination=stdout'],
      ...['--test-reporter=./scripts/report-skipped.js', `--test-reporter-destination=${skipped}`],
      ...files,
    ],
    { stdio: 'inherit' },
  );
  process.stdout.write(readFileSync(skipped, 'utf8'));
  process.exitCode = status ?? 1;
} finally {
  rmSync(folder, { recursive: true, force: true });
}
