import { fileURLToPath } from 'node:url';
import js from '@eslint/js';
import { defineConfig } from 'eslint/config';
import tseslint from 'typescript-eslint';
import { roomsRule } from './scripts/eslint-rooms.js';

/**
 * The rooms of src/, from the ground up: a file or folder only imports from its own line and the lines above it. The longest
 * path that a file lies in counts: `platform/rdma/abi` before `platform/rdma`.
 */
const ROOMS = [
  [
    'disposables',
    'realms',
    'show',
    'debug',
    'timers',
    'here',
    'errors',
    'check',
    'units',
    'ranges',
    'any-of',
    'range-map',
    'address-set',
    'origin',
    'short-form',
    'stays',
    'steps',
    'long-work',
    'forgotten',
    'at-exit',
    'feed',
    'fields',
    'handed',
  ],
  // The words of a specification that a driver and a model share.
  ['nvme'],
  ['platform/uapi', 'platform/struct', 'platform/background'],
  // What the port of RDMA is made of: it needs no library.
  [
    'platform/rdma/abi',
    'platform/rdma/verbs-types',
    'platform/rdma/verbs-work',
    'platform/rdma/verbs-port',
    'platform/rdma/rdma-cm-port',
  ],
  ['platform/ports'],
  ['platform/registers', 'platform/portable'],
  ['platform/linux'],
  ['platform/rdma'],
  ['platform/linux.ts', 'platform/open'],
  // Words that threads and processes share, and who uses them.
  ['memory/shared'],
  ['memory'],
  ['memory/heap'],
  ['memory/owned'],
  ['memory/pool'],
  ['dma'],
  ['vfio-user'],
  ['vfio'],
  ['rdma'],
  ['bus'],
  // Packets, Ethernet ports, and the engine that forwards.
  ['net'],
  ['drivers'],
  // What other threads and processes attach to.
  ['share'],
  ['eal'],
  // What the package exports.
  ['index', 'entry'],
  ['cli'],
];

export default defineConfig(
  { ignores: ['dist/', 'dist-docs/'] },
  js.configs.recommended,
  {
    files: ['**/*.js'],
    languageOptions: { globals: { console: 'readonly', process: 'readonly', URL: 'readonly' } },
  },
  {
    files: ['**/*.ts'],
    extends: [tseslint.configs.strictTypeChecked],
    languageOptions: { parserOptions: { projectService: true, tsconfigRootDir: import.meta.dirname } },
    rules: {
      '@typescript-eslint/consistent-type-imports': ['error', { disallowTypeAnnotations: false }],
      '@typescript-eslint/no-unused-vars': ['error', { argsIgnorePattern: '^_', varsIgnorePattern: '^_' }],
      '@typescript-eslint/restrict-template-expressions': ['error', { allowNumber: true, allowBoolean: true }],
      '@typescript-eslint/switch-exhaustiveness-check': ['error', { considerDefaultExhaustiveForUnions: true }],
      eqeqeq: 'error',
      'no-console': 'error',
      'no-restricted-syntax': [
        'error',
        {
          selector: 'TSAsExpression > TSAsExpression[typeAnnotation.type="TSUnknownKeyword"]',
          message: 'A cast through unknown hides a mistake: give the value its right type, or check it.',
        },
      ],

      // The indexes of arrays and the answers of the kernel are less certain than their types say, so that checks which
      // look needless are wanted here.
      '@typescript-eslint/no-unnecessary-condition': 'off',
      // An implementation of an asynchronous interface may have nothing to wait for.
      '@typescript-eslint/require-await': 'off',
      // `() => port.close()` is how undo steps and handlers are written.
      '@typescript-eslint/no-confusing-void-expression': 'off',
      // Methods are handed over to say which one was called (origin.ts). To be called later, they are wrapped in arrows.
      '@typescript-eslint/unbound-method': 'off',
      // A signature that names the type which the caller gets back is clearer than a cast at each call.
      '@typescript-eslint/no-unnecessary-type-parameters': 'off',
    },
  },
  {
    files: ['src/**/*.ts'],
    plugins: { anydma: { rules: { rooms: roomsRule } } },
    rules: {
      'anydma/rooms': [
        'error',
        {
          root: fileURLToPath(new URL('src', import.meta.url)),
          rooms: ROOMS,
          packages: { koffi: 'platform' },
        },
      ],
    },
  },
  {
    // Programs that test themselves with fake timers go on using devices.
    files: ['src/**/*.ts'],
    ignores: ['src/cli/**', 'src/timers.ts', '**/*.test.ts'],
    rules: {
      'no-restricted-globals': [
        'error',
        ...[
          'setTimeout',
          'setInterval',
          'setImmediate',
          'clearTimeout',
          'clearInterval',
          'clearImmediate',
          'queueMicrotask',
          'performance',
          'Date',
        ].map((name) => ({ name, message: "Take it from src/timers.ts, which has Node's own." })),
      ],
    },
  },
  {
    files: ['src/cli/**', 'bench/**', 'examples/**', 'test/**', 'scripts/**'],
    rules: { 'no-console': 'off' },
  },
  {
    files: ['**/*.test.ts', 'test/**/*.ts'],
    rules: {
      // node:test takes the promises of its own calls.
      '@typescript-eslint/no-floating-promises': [
        'error',
        {
          allowForKnownSafeCalls: [
            { from: 'package', package: 'node:test', name: ['test', 'it', 'describe', 'suite', 'before', 'after'] },
          ],
        },
      ],
      // Stand-ins for ports are made of small functions that do nothing.
      '@typescript-eslint/no-empty-function': 'off',
      // Tests hand over what the types forbid, on purpose.
      '@typescript-eslint/no-unsafe-argument': 'off',
      '@typescript-eslint/no-unsafe-assignment': 'off',
      '@typescript-eslint/no-unsafe-member-access': 'off',
      '@typescript-eslint/only-throw-error': 'off',
      '@typescript-eslint/prefer-promise-reject-errors': 'off',
    },
  },
);
