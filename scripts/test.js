/**
 * Runs the compiled tests with Node's test runner: `node scripts/test.js [text...]`. With texts, only the files whose
 * path contains one of them.
 *
 * The list is made of the sources, because dist/ may still have tests whose source is gone, and because Node 20 knows no
 * patterns in `--test` and later versions read a folder there differently.
 */
import { spawnSync } from 'node:child_process';
import { readdirSync } from 'node:fs';
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

// No test takes minutes: a test that hangs ends as a failure.
const options = ['--test', '--test-reporter=spec', '--test-timeout=300000'];
const { status } = spawnSync(process.execPath, [...options, ...files], { stdio: 'inherit' });
process.exit(status ?? 1);
