import unittest
class T(unittest.TestCase):
    def test(self): self.assertEqual(1, 1)
unittest.main(argv=["x"], exit=True, verbosity=0) if False else print(unittest.TextTestRunner(stream=open("/dev/null", "w")).run(unittest.defaultTestLoader.loadTestsFromTestCase(T)).wasSuccessful())
